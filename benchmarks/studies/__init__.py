"""The measurements that pages in docs/ report: their csv files, pictures and tables."""
