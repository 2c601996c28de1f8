"""An audit as text, JSON, Markdown and an HTML page."""
