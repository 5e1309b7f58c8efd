"""Grading: two scorings of one text become grades, reviews, branches and their summaries."""
