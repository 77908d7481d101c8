"""The command line of all layers; what Ray Tune adds comes here."""
