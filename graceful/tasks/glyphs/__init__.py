"""Glyphs: characters of real, freely licensed typefaces, 28x28. The data ships in this package; see CARD.md."""
