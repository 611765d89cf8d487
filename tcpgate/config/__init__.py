"""The config: from TOML files to frozen classes, with every problem at once.

`source` reads files, `expand` puts the environment in, `structure` makes the classes of `schema` (asking `fields` and
`forms` what a string may be), `check` holds tables against each other, `load` is all of that in order. `report` and
`locate` say where a problem stands. `pem` reads the files that TLS tables name, `certificate` says what they hold.
`diff` says what a reload would touch; `export` and `json_schema` give a config, and its form, to others. Only `source`,
`load`, `pem` and `host` look at the host, and none of them changes it.
"""
