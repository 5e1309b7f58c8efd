"""The other programs that do the same work, each at its best settings and in a process of its own."""
