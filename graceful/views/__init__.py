"""Presentation: values in; tables, HTML and SVG out, with templates in `templates`. Nothing here measures."""
