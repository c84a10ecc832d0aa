//! The record of every accepted turn: its file format, recorder and reader.
