"""Equals without a server: signed logs, an exchange that finds what differs, and epochs that a quorum closes."""
