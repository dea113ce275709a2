// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
)

// A topModel is what top shows and how: the state that keys and samples change.
type topModel struct {
	address  string
	interval time.Duration
	next     func() (*topSample, error)
	panes    []topPane

	width, height int
	sample        *topSample
	err           error     // why there is none newer
	lists         []topList // by pane
	pane          int       // the one that is shown
	detail        string    // id of the span that is shown instead; "": none
	help          bool
	scroll        int // of the details or the help: the first line on the screen
	paused        bool
	pending       bool // a sample is being taken, or waited for
}

// A topList is how a pane is shown.
type topList struct {
	sort       int
	descending bool
	filter     string
	typing     bool   // the filter
	selected   string // the key of the row; one that is gone: the row at cursor
	cursor     int    // its place
	top        int    // the first row on the screen
}

// Messages of the program to itself.
type (
	sampled struct { // a sample was taken, or could not be
		sample *topSample
		err    error
		took   time.Duration
	}
	timeIsUp struct{} // the next sample is due
)

func newTopModel(address string, interval time.Duration, first *topSample, next func() (*topSample, error)) *topModel {
	m := &topModel{address: address, interval: interval, sample: first, next: next, panes: topPanes(), width: 80, height: 24}
	for _, p := range m.panes {
		m.lists = append(m.lists, topList{sort: p.sort})
	}
	m.settle()
	return m
}

// Init implements tea.Model.
func (m *topModel) Init() tea.Cmd { return m.wait(0) }

// wait waits until the next sample is due. A daemon that is long in answering,
// as it has very many spans or blocks, is asked less often: it has other work.
func (m *topModel) wait(took time.Duration) tea.Cmd {
	m.pending = true
	return tea.Tick(max(m.interval, 4*took), func(time.Time) tea.Msg { return timeIsUp{} })
}

// take asks for a sample now.
func (m *topModel) take() tea.Cmd {
	m.pending = true
	return func() tea.Msg {
		start := time.Now()
		sample, err := m.next()
		return sampled{sample, err, time.Since(start)}
	}
}

// Update implements tea.Model.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	var cmd tea.Cmd
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		if msg.Width > 0 && msg.Height > 0 { // else the terminal does not know
			m.width, m.height = msg.Width, msg.Height
		}
	case tea.KeyPressMsg:
		cmd = m.press(msg)
	case sampled:
		if m.err = msg.err; msg.err == nil {
			m.sample = msg.sample
		}
		cmd = m.wait(msg.took)
	case timeIsUp:
		m.pending = false
		if !m.paused {
			cmd = m.take()
		}
	}
	m.settle()
	return m, cmd
}

// press carries out a key.
func (m *topModel) press(key tea.KeyPressMsg) tea.Cmd {
	list := &m.lists[m.pane]
	if list.typing {
		if key.String() == "ctrl+c" {
			return tea.Quit
		}
		list.edit(key)
		return nil
	}
	switch name := key.String(); name {
	case "q", "ctrl+c":
		return tea.Quit
	case "p", "space":
		m.paused = !m.paused
		if !m.paused && !m.pending {
			return m.take()
		}
	case "?", "h", "f1":
		m.help, m.scroll = !m.help, 0
	case "esc":
		switch {
		case m.help:
			m.help, m.scroll = false, 0
		case m.detail != "":
			m.detail = ""
		default:
			list.filter = ""
		}
	case "backspace", "left":
		m.detail = ""
	default:
		if m.help || m.detail != "" {
			m.scrollBy(name)
		} else {
			m.move(list, name)
		}
	}
	return nil
}

// move carries out a key that is about the list on the screen.
func (m *topModel) move(list *topList, key string) {
	columns := m.panes[m.pane].columns
	switch key {
	case "tab":
		m.pane = (m.pane + 1) % len(m.panes)
	case "shift+tab":
		m.pane = (m.pane + len(m.panes) - 1) % len(m.panes)
	case "up", "k":
		list.step(-1)
	case "down", "j":
		list.step(1)
	case "pgup", "ctrl+b":
		list.step(-m.room())
	case "pgdown", "ctrl+f":
		list.step(m.room())
	case "home", "g":
		list.step(-list.cursor)
	case "end", "G":
		list.step(1 << 30)
	case "/":
		list.typing = true
	case "s", ">":
		list.sortBy((list.sort+1)%len(columns), columns)
	case "S", "<":
		list.sortBy((list.sort+len(columns)-1)%len(columns), columns)
	case "r":
		list.descending = !list.descending
	case "enter", "right":
		if m.pane == 0 && len(m.rows()) > 0 {
			m.detail, m.scroll = list.selected, 0
		}
	}
}

// scrollBy carries out a key that is about the text on the screen; its view
// keeps it within the text.
func (m *topModel) scrollBy(key string) {
	switch key {
	case "up", "k":
		m.scroll--
	case "down", "j":
		m.scroll++
	case "pgup", "ctrl+b":
		m.scroll -= m.room()
	case "pgdown", "ctrl+f":
		m.scroll += m.room()
	case "home", "g":
		m.scroll = 0
	case "end", "G":
		m.scroll = 1 << 30
	}
}

// edit changes the filter that is being typed.
func (l *topList) edit(key tea.KeyPressMsg) {
	switch name := key.String(); name {
	case "enter":
		l.typing = false
	case "esc":
		l.typing, l.filter = false, ""
	case "backspace":
		if runes := []rune(l.filter); len(runes) > 0 {
			l.filter = string(runes[:len(runes)-1])
		}
	case "ctrl+u":
		l.filter = ""
	default:
		l.filter += key.Key().Text
	}
}

// step moves the cursor; settle keeps it within the rows.
func (l *topList) step(by int) {
	l.cursor += by
	l.selected = ""
}

func (l *topList) sortBy(sort int, columns []topColumn) {
	l.sort, l.descending = sort, columns[sort].number
}

// rows are those of the pane on the screen that the filter lets through.
func (m *topModel) rows() []topRow {
	list := &m.lists[m.pane]
	rows := m.panes[m.pane].rows(m.sample, list.sort, list.descending)
	if list.filter == "" {
		return rows
	}
	want := strings.ToLower(list.filter)
	return slices.DeleteFunc(rows, func(r topRow) bool {
		return !slices.ContainsFunc(r.cells, func(cell string) bool { return strings.Contains(strings.ToLower(cell), want) })
	})
}

// settle brings the cursor to the row that is selected, wherever the sample or
// the order has put it, and the row to the screen.
func (m *topModel) settle() {
	list, rows := &m.lists[m.pane], m.rows()
	if i := slices.IndexFunc(rows, func(r topRow) bool { return r.key == list.selected }); i >= 0 {
		list.cursor = i
	}
	list.cursor = max(0, min(list.cursor, len(rows)-1))
	list.selected = ""
	if len(rows) > 0 {
		list.selected = rows[list.cursor].key
	}
	room := m.room()
	list.top = max(list.cursor-room+1, min(list.top, list.cursor, max(0, len(rows)-room)))
}
