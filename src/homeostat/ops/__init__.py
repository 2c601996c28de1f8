"""The maths of batch normalization, one module per array library, all with the same functions.

`moments`, `normalize` and `normalize_batch` mean the same in `homeostat.ops.numpy`,
`homeostat.ops.tensorflow`, `homeostat.ops.torch` and `homeostat.ops.jax`; only the arrays differ.
None of them holds state.
"""
