"""The inside of a Triton model's process: requests, services, messages, senders, metrics, health.

Nothing here imports `triton_python_backend_utils`: a shell hands the module over.
"""
