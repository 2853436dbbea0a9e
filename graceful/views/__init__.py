"""What people look at: values in; tables, HTML and SVG out. Templates lie in `templates`; nothing here measures."""
