"""The files on storage, and the only code that writes them.

`backends` local folders and object storage · `store` put-if-absent · `part` and `codec` the features of a shard as
Parquet · `identity` the fingerprint of features · `records` the record of a finished shard · `grams` and `queries` the
other files of features and audits · `manifest` an audit's files and their hashes · `contents` the files that an audit
names · `verify` and `consistency` damage · `gc` files that no audit needs.
"""
