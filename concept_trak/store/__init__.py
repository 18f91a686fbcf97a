"""What lies on storage, and the only writer of it.

`place` where bytes lie · `commit` put-if-absent · `part` and `codec` the features of a shard as Parquet · `identity`
which features are the same · `records` the proof that a shard is done · `manifest` an audit's files and their hashes ·
`claim` what an audit names · `check` what is wrong with it · `retention` what nothing needs any more.
"""
