"""TensorRT-LLM's blocks to and from our kvstore: its KvCacheConnector, whose halves live in the engine's own processes.

    the service's process                                  the engine's processes, one for each rank
    ─────────────────────                                  ─────────────────────────────────────────
    kv_transfer: asks, leases, fetches  ─▶ StoredPrefix    leader.py   on rank 0: finds what is staged, leases, offers
    … shards.py  every rank's part of a block or none                  it; says which blocks to load and to save
    area.py      the prefix as one file in memory  ──────▶ worker.py   on every rank: file ─▶ blocks, blocks ─▶ store
                                                           copies.py   the device's side, store_link.py the store's

A prefix is on this host, whole and verified, before the engine hears of it: what was offered can only fail by a copy
within the machine. `area_view.py` is the ranks' side of the folder that both share, `names.py` and `told.py` are what
is written there and in the environment; `requests.py` and `check.py` decide. `entry.py` is what the engine imports.
"""
