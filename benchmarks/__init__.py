"""Measurements that the README and the notes quote; callers of the library like any other."""
