"""What an adapter did to its base: deltas, gates, answers, on one page.

`measures` are pure functions of arrays, `deltas`, `gates` and `answers` apply them to runs,
`gather` makes one dict of figures, `sections` and `page` draw that dict, `program` is
`python -m eval.report`. Data flows in this order only.
"""
