"""Models, as flax.nnx modules, and the legend of shapes for the whole package.

The name of an array ends in one letter for every axis: `x_RTD` has rows, tokens and model width. A
digit is an axis of exactly that size. Every letter has one meaning in every module:

  A  answers: the top items of a query, best first
  B  batch: items, texts or images that are computed together
  C  codes of a level, clusters
  D  width of the model, or of the space that codes are in
  E  entries: any other count: events, points, sampled items, new items
  F  hidden width of a gated MLP
  G  groups that a batch's rows are divided into, one per device; groups of users
  H  width of an attention head
  I  items of a table; row 0 is padding, unless the docstring says otherwise
  J  tokens of a joined stream: the prompt once, then all rows of a group
  K  key and value heads
  L  levels of a semantic ID
  M  modalities
  N  query heads
  O  origins of a score: the learned row, then one per modality, 1 + M
  P  prompt tokens before the history
  Q  targets, each of which is a query
  R  rows of a packed batch
  S  response tokens after every target's history
  T  tokens of a row
  U  users
  V  width of a feature vector
  W  reduced width: whitened features, coordinates of a grid code, principal components
  X  past items of a user, padded
  Y  keys that a row attends to: the prompt's tokens, then the row's, P + T
  Z  beams of a search: prefixes that are continued side by side
"""
