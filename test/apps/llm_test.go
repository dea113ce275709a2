// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package apps

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLanguageModel has llama.cpp's Vulkan backend compute tokens, of a model
// with random weights: they are the native driver's.
func TestLanguageModel(t *testing.T) {
	wanted(t)
	needs(t, "node", "npm")
	dir := filepath.Join(built.dir, "llm")
	check(t, os.CopyFS(dir, os.DirFS("testdata/llm")))
	check(t, command("npm", "--prefix", dir, "install", "--ignore-scripts", "--no-audit", "--no-fund"))
	model := filepath.Join(dir, "model.gguf")
	check(t, os.WriteFile(model, newModel(128, 2), 0o600))
	d := serve(t, nil)
	variables := []string{"GGML_VK_VISIBLE_DEVICES=0"} // else it passes over a software device
	app := []string{"node", "tokens.mjs", model, "16"}
	native := d.runIn(t, dir, variables, "native", app...)
	if n := len(strings.Fields(native)); n != 16 {
		t.Fatalf("%d tokens natively: %q", n, native)
	}
	for _, transport := range transports {
		if out := d.runIn(t, dir, variables, transport, app...); out != native {
			t.Errorf("%s: tokens %s, natively %s", transport, out, native)
		}
	}
}

// newModel returns a model of the llama architecture with random weights, as a
// GGUF file (version 3): a header, metadata, the tensors' places, the tensors.
func newModel(width, layers int) []byte {
	const align = 32
	random := rand.New(rand.NewPCG(1, 2))
	m := new(gguf)
	hidden, heads := 2*width, width/64

	vocabulary := []string{"<unk>", "<s>", "</s>"}
	kinds := []int32{2, 3, 3} // unknown, control
	scores := []float32{0, 0, 0}
	add := func(token string, kind int32, score float32) {
		vocabulary, kinds, scores = append(vocabulary, token), append(kinds, kind), append(scores, score)
	}
	for i := range 256 {
		add(fmt.Sprintf("<0x%02X>", i), 6, 0) // a byte
	}
	for i, r := range "▁abcdefghijklmnopqrstuvwxyz" {
		add(string(r), 1, -1-float32(i))
	}

	m.text("general.architecture", "llama")
	m.text("general.name", "random")
	m.text("tokenizer.ggml.model", "llama")
	for key, n := range map[string]int{
		"general.alignment": align, "llama.context_length": 512, "llama.embedding_length": width,
		"llama.block_count": layers, "llama.feed_forward_length": hidden, "llama.attention.head_count": heads,
		"llama.attention.head_count_kv": heads, "llama.rope.dimension_count": 64, "llama.vocab_size": len(vocabulary),
		"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
	} {
		m.value(key, 4, uint32(n))
	}
	m.value("llama.attention.layer_norm_rms_epsilon", 6, float32(1e-5))
	m.array("tokenizer.ggml.tokens", 8, len(vocabulary))
	for _, token := range vocabulary {
		m.head = appendText(m.head, token)
	}
	m.array("tokenizer.ggml.scores", 6, len(scores))
	m.put(scores)
	m.array("tokenizer.ggml.token_type", 5, len(kinds))
	m.put(kinds)

	ones := func() float32 { return 1 }
	normal := func(deviation float64) func() float32 {
		return func() float32 { return float32(random.NormFloat64() * deviation) }
	}
	m.tensor("token_embd.weight", normal(0.5), width, len(vocabulary))
	for i := range layers {
		name := func(part string) string { return fmt.Sprintf("blk.%d.%s.weight", i, part) }
		in, out := normal(1/math.Sqrt(float64(width))), normal(1/math.Sqrt(float64(hidden)))
		m.tensor(name("attn_norm"), ones, width)
		for _, part := range []string{"attn_q", "attn_k", "attn_v", "attn_output"} {
			m.tensor(name(part), in, width, width)
		}
		m.tensor(name("ffn_norm"), ones, width)
		m.tensor(name("ffn_gate"), in, width, hidden)
		m.tensor(name("ffn_up"), in, width, hidden)
		m.tensor(name("ffn_down"), out, hidden, width)
	}
	m.tensor("output_norm.weight", ones, width)
	m.tensor("output.weight", normal(0.3), width, len(vocabulary))
	return m.file(align)
}

// A gguf is a file being made.
type gguf struct {
	keys, tensors uint64
	head, places  []byte
	data          bytes.Buffer
}

func appendText(dst []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(dst, uint64(len(s))), s...)
}

func (m *gguf) put(v any) { m.head, _ = binary.Append(m.head, binary.LittleEndian, v) }

func (m *gguf) key(name string, kind uint32) {
	m.keys++
	m.head = appendText(m.head, name)
	m.put(kind)
}

func (m *gguf) text(name, s string) {
	m.key(name, 8)
	m.head = appendText(m.head, s)
}

func (m *gguf) value(name string, kind uint32, v any) {
	m.key(name, kind)
	m.put(v)
}

func (m *gguf) array(name string, kind uint32, n int) {
	m.key(name, 9)
	m.put(kind)
	m.put(uint64(n))
}

// tensor adds 32-bit floats.
func (m *gguf) tensor(name string, next func() float32, dimensions ...int) {
	m.tensors++
	m.places = appendText(m.places, name)
	m.places = binary.LittleEndian.AppendUint32(m.places, uint32(len(dimensions)))
	n := 1
	for _, d := range dimensions {
		m.places = binary.LittleEndian.AppendUint64(m.places, uint64(d))
		n *= d
	}
	m.places = binary.LittleEndian.AppendUint32(m.places, 0)
	m.places = binary.LittleEndian.AppendUint64(m.places, uint64(m.data.Len()))
	for range n {
		binary.Write(&m.data, binary.LittleEndian, next())
	}
	m.data.Write(make([]byte, -m.data.Len()&31))
}

func (m *gguf) file(align int) []byte {
	out := append([]byte("GGUF"), 3, 0, 0, 0)
	out = binary.LittleEndian.AppendUint64(out, m.tensors)
	out = binary.LittleEndian.AppendUint64(out, m.keys)
	out = append(append(out, m.head...), m.places...)
	out = append(out, make([]byte, -len(out)&(align-1))...)
	return append(out, m.data.Bytes()...)
}
