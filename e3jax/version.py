"""The version of this program, wherever it lies, installed or not."""

VERSION = "0.1.0"
