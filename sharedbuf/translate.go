// SPDX-License-Identifier: Apache-2.0

package sharedbuf

import (
	"fmt"
	"strings"
)

// A Rule says that what one side calls Guest and all below it the other side
// calls Host. Each is an absolute Linux path, as in /mnt/c, or a Windows path
// with its drive, as in C:\ or C:\temp.
type Rule struct{ Guest, Host string }

// A Translation turns the guest's paths into the host's and back. The rule with
// the longest prefix that matches counts; prefixes match whole components. Nil
// translates nothing.
type Translation []Rule

// WSL returns the rules of the Windows Subsystem for Linux: each drive's letter
// is a directory of /mnt.
func WSL() Translation {
	var t Translation
	for letter := 'a'; letter <= 'z'; letter++ {
		t = append(t, Rule{fmt.Sprintf("/mnt/%c", letter), fmt.Sprintf(`%c:\`, letter-'a'+'A')})
	}
	return t
}

// ParseRule parses GUEST=HOST, as in /mnt/c=C:\. The error is an *Error with
// ErrInvalid.
func ParseRule(text string) (Rule, error) {
	guest, host, ok := strings.Cut(text, "=")
	if !ok {
		return Rule{}, invalidf("%q is no translation; want GUEST=HOST, like /mnt/c=C:\\", text)
	}
	for _, path := range []string{guest, host} {
		if _, err := split(path); err != nil {
			return Rule{}, &Error{Code: ErrInvalid, Message: fmt.Sprintf("translation %q", text), Err: err}
		}
	}
	return Rule{guest, host}, nil
}

// ToHost returns what the host calls the guest's path. The error is an *Error
// with ErrOutside for a path that no rule is for, or that is none: relative, with
// . or .. or empty components, of a Windows share, or with characters that mean
// something else on the other side.
func (t Translation) ToHost(guest string) (string, error) {
	return t.translate(guest, func(r Rule) (from, to string) { return r.Guest, r.Host })
}

// ToGuest is the reverse of ToHost.
func (t Translation) ToGuest(host string) (string, error) {
	return t.translate(host, func(r Rule) (from, to string) { return r.Host, r.Guest })
}

func (t Translation) translate(path string, side func(Rule) (from, to string)) (string, error) {
	p, err := split(path)
	if err != nil {
		return "", err
	}
	var best *splitPath // of the other side
	depth := -1
	for _, rule := range t {
		from, to := side(rule)
		prefix, err := split(from)
		if err != nil {
			return "", err
		}
		target, err := split(to)
		if err != nil {
			return "", err
		}
		if p.under(prefix) && len(prefix.parts) > depth {
			best, depth = target, len(prefix.parts)
		}
	}
	if best == nil {
		return "", outsidef("%q: no translation is for it", path)
	}
	best.parts = append(best.parts, p.parts[depth:]...)
	if err := best.check(); err != nil {
		return "", err
	}
	return best.String(), nil
}

// A splitPath is an absolute path, taken apart.
type splitPath struct {
	drive byte // upper case; 0: a Linux path
	parts []string
}

func outsidef(format string, args ...any) *Error {
	return &Error{Code: ErrOutside, Message: fmt.Sprintf(format, args...)}
}

func split(path string) (*splitPath, error) {
	p := new(splitPath)
	rest, separators := path, "/"
	switch {
	case len(path) >= 3 && isLetter(path[0]) && path[1] == ':' && (path[2] == '\\' || path[2] == '/'):
		p.drive, rest, separators = path[0]&^0x20, path[3:], `\/`
	case strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//"):
		rest = path[1:]
	default:
		return nil, outsidef("%q is no absolute path", path)
	}
	rest = strings.TrimRight(rest, separators)
	if rest != "" {
		p.parts = splitAny(rest, separators)
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return p, nil
}

func splitAny(s, separators string) (parts []string) {
	for {
		i := strings.IndexAny(s, separators)
		if i < 0 {
			return append(parts, s)
		}
		parts = append(parts, s[:i])
		s = s[i+1:]
	}
}

func isLetter(b byte) bool { return 'a' <= b|0x20 && b|0x20 <= 'z' }

// check refuses components that are no names on the path's own side.
func (p *splitPath) check() error {
	for _, part := range p.parts {
		switch {
		case part == "" || part == "." || part == "..":
			return outsidef("%q: %q is not allowed in a path", p, part)
		case strings.ContainsRune(part, 0):
			return outsidef("%q: a NUL is not allowed in a path", p)
		case p.drive == 0:
			continue
		case strings.ContainsAny(part, `\/:*?"<>|`) || strings.ContainsFunc(part, func(r rune) bool { return r < 0x20 }):
			return outsidef("%q: %q is no name on Windows", p, part)
		case strings.HasSuffix(part, ".") || strings.HasSuffix(part, " "):
			return outsidef("%q: Windows drops the end of %q", p, part)
		case isDevice(part):
			return outsidef("%q: %q is a device on Windows", p, part)
		}
	}
	return nil
}

// isDevice reports whether Windows takes name for a device, in any directory.
func isDevice(name string) bool {
	base, _, _ := strings.Cut(strings.ToUpper(name), ".")
	base = strings.TrimRight(base, " ")
	switch base {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return true
	}
	number, ok := strings.CutPrefix(base, "COM")
	if !ok {
		number, ok = strings.CutPrefix(base, "LPT")
	}
	return ok && (len(number) == 1 && '0' <= number[0] && number[0] <= '9' || number == "¹" || number == "²" || number == "³")
}

// under reports whether p is prefix or below it. Windows does not tell upper
// case from lower.
func (p *splitPath) under(prefix *splitPath) bool {
	if p.drive != prefix.drive || len(p.parts) < len(prefix.parts) {
		return false
	}
	for i, part := range prefix.parts {
		if p.parts[i] != part && (p.drive == 0 || !strings.EqualFold(p.parts[i], part)) {
			return false
		}
	}
	return true
}

// String returns the path as its side writes it.
func (p *splitPath) String() string {
	if p.drive == 0 {
		return "/" + strings.Join(p.parts, "/")
	}
	return string(rune(p.drive)) + `:\` + strings.Join(p.parts, `\`)
}

// Below returns what is left of path when the directory dir is taken off its
// front, both of one side, separated by slashes; "." if they are equal. The
// error is an *Error with ErrOutside if path is not dir or below it.
func Below(dir, path string) (string, error) {
	p, err := split(path)
	if err != nil {
		return "", err
	}
	d, err := split(dir)
	if err != nil {
		return "", err
	}
	if !p.under(d) {
		return "", outsidef("%q is not below the directory that buffers are in, %s", path, dir)
	}
	if len(p.parts) == len(d.parts) {
		return ".", nil
	}
	return strings.Join(p.parts[len(d.parts):], "/"), nil
}
