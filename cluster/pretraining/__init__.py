"""`metatrain pretrain`: a network that learns all training examples together."""
