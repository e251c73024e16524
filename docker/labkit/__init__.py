"""The compose laboratory of vipd: what `docker/lab` is made of. Python's own library only."""
