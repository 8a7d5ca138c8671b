"""Tables of results, with the papers' figures beside them."""
