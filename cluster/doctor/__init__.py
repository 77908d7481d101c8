"""`metatrain doctor`: whether the machines of a run have what it needs."""
