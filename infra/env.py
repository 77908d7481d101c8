"""Write infra/.env: secrets for compose.yaml, and variables for a shell that uses the cluster."""

import os
import secrets
import sys
from pathlib import Path

PATH = Path(__file__).parent / ".env"
VALUES = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_API_SERVER_ADDRESS": "http://localhost:8265",
    "AWS_ENDPOINT_URL": "http://localhost:9000",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "metatrain",
    "AWS_SECRET_ACCESS_KEY": secrets.token_hex(32),
    "POSTGRES_PASSWORD": secrets.token_hex(32),
    # Ray needs the same version on both sides
    "IMAGE_PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
}

if PATH.exists():
    sys.exit(f"error: {PATH} is there already and in use: remove it to get new secrets")
# Only this user can read it.
with os.fdopen(os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
    file.writelines(f"{name}={value}\n" for name, value in VALUES.items())
print(f"written: {PATH}")
