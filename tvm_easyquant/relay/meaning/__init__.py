"""What Relay's float operators mean, in numpy; `rules.compute` is the door."""
