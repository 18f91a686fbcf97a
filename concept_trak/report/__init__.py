"""Results as pages: one `*_page` module per page, `render` and the templates beside it. No page runs a script."""
