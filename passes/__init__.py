"""Graph passes, one per file, in the order in which the pipeline runs them.

Surgery works on the module-level graph of the user's model: `capture`, `plan`, `replace_activations`,
`replace_convs`, `insert_batch_norm`, `insert_elastic_links`, `balance_residuals`.
Lowering works on the functional graph of the trained model: `drop_aliases`, `lower_convs`, `fuse_epilogue`,
`swap_max_pool`, `drop_expands`, `flatten_convs`, `choose_layout`, `lower_activations`, `lower_maps`,
`cancel_transposes`, `merge_equal`, `fuse_packs`, `absorb_shifts`, `narrow_stream`, `grow_maps`, `squeeze_links`,
`decompose_unfused`.
"""
