"""Methods to compare with: ``(key, images, ...) -> {name: scores [n]}``, small = outlying."""
