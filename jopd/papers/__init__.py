"""What one paper alone needs: one file for each paper.

A config names these functions as 'jopd.papers.tip:top_informative', or imports
them. What two papers need is in the library itself.
"""
