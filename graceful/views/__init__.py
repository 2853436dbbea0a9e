"""What people look at: values in, HTML and SVG out. Templates lie in `templates`; nothing here measures or decides."""
