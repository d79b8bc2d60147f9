"""The torchtitan plugin: everything that knows torchtitan 0.3.0."""
