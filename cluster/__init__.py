"""The run: one loop over a pool of workers, in process or on Ray."""
