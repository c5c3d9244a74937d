module {{package}}

go 1.24

require tidegate v0.0.0

replace tidegate => ./tidegate
