"""The paper's numbers, and tables and figures of result rows beside them.

Rows are dictionaries, as in a sweep's JSON files or as read from its results.csv: both give the
same tables and figures. ``numbers.csv`` holds Table 1 of the paper and what its text reports, in
percent; a cell is empty where every version of the paper lost the number. The authors' RDAE never
separates outliers, so the paper's numbers belong to the variant ``rdae-as-published``.
"""
