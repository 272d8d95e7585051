package main

import (
	"errors"
	"strings"
)

// splitWords splits a command line into words as a shell does: at blanks, but
// not within quotes; a backslash takes the next character as it is, within
// double quotes only before " and \. Nothing is expanded.
func splitWords(s string) ([]string, error) {
	var (
		words  []string
		word   strings.Builder
		inWord bool
		quote  rune // 0 outside
	)
	runes := []rune(s)
	for i := 0; i < len(runes); i++ {
		r := runes[i]
		switch {
		case r == '\\' && quote != '\'':
			inWord = true
			if i+1 == len(runes) {
				return nil, errors.New("it ends in a backslash")
			}
			if next := runes[i+1]; quote == 0 || next == '"' || next == '\\' {
				i++
				r = next
			}
			word.WriteRune(r)
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, inWord = r, true
		case strings.ContainsRune(" \t\n", r):
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
