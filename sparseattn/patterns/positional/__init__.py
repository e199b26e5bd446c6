"""Families that follow from sizes only: windows, strides, blocks, documents, global tokens."""
