"""incop in other people's worlds: each module needs its own extra."""
