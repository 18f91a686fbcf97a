"""A finished audit answers questions over HTTP, and on a page with a search box."""
