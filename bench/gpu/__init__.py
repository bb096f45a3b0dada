"""The Triton kernels proved and measured on a machine with a GPU: ``python -m bench --gpu OUT``.

Five stages, each within its time and each in a file of its own: ``tests`` (the suite on CUDA tensors),
``hazard`` (a thousand repeats against exact results), ``sanitizer`` (compute-sanitizer), ``speed`` and
``tune``. Without a GPU all but the sanitizer can be rehearsed at tiny sizes, in Triton's interpreter:
``TRITON_INTERPRET=1 python -m bench --gpu OUT --device cpu``.
"""
