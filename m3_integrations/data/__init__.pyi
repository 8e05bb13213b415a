from .beir import (
    JudgedCollection as JudgedCollection,
    read_beir as read_beir,
    read_judged as read_judged,
    read_languages as read_languages,
    read_qrels as read_qrels,
)
from .click_log import Click as Click, clicks_to_queries as clicks_to_queries, read_clicks as read_clicks
from .load import QuerySplits as QuerySplits, load_judged_queries as load_judged_queries, load_queries as load_queries
from .passages import read_passages as read_passages
from .qa_json import load_qa_dataset as load_qa_dataset
from .splits import split_by_text as split_by_text
from .trec import read_run as read_run, write_run as write_run
