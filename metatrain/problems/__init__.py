"""Problems: families bound to networks, as algorithms see them."""
