// SPDX-License-Identifier: Apache-2.0

package surface

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	triesBurst = 20              // wrong proofs that an asker has at once
	triesEvery = 3 * time.Second // one more
	maxAskers  = 4096            // that are remembered, those with the latest wrong proofs
)

// tries counts wrong proofs by who made them. The zero value is ready.
type tries struct {
	mu     sync.Mutex
	askers map[string]*list.Element // of asker
	latest list.List                // the latest wrong proof first
}

type asker struct {
	who   string
	limit *rate.Limiter
}

// allowed reports whether who may try.
func (t *tries) allowed(who string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	el := t.askers[who]
	return el == nil || el.Value.(*asker).limit.Tokens() >= 1
}

// wrong notes that who tried in vain.
func (t *tries) wrong(who string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	el := t.askers[who]
	if el == nil {
		if t.askers == nil {
			t.askers = make(map[string]*list.Element)
		}
		if t.latest.Len() == maxAskers {
			delete(t.askers, t.latest.Remove(t.latest.Back()).(*asker).who)
		}
		el = t.latest.PushFront(&asker{who, rate.NewLimiter(rate.Every(triesEvery), triesBurst)})
		t.askers[who] = el
	}
	t.latest.MoveToFront(el)
	el.Value.(*asker).limit.Allow()
}
