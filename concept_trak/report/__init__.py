"""An audit as one HTML page: `page` what it shows, `render` makes it, `page.html` its words, `style.html` its looks."""
