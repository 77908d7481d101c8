"""Workers: a ticket in, an update or scores out."""
