// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"slices"
	"strings"
	"testing"
)

func TestTablesAreInOrder(t *testing.T) {
	if !slices.IsSortedFunc(Commands, func(a, b Command) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("Commands are not sorted")
	}
	if !slices.IsSortedFunc(Structs, func(a, b Struct) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("Structs are not sorted")
	}
	if !slices.IsSortedFunc(Handles, func(a, b HandleType) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("Handles are not sorted")
	}
	for i, c := range Commands {
		if got := CommandByName(c.Name); got != Index(i) {
			t.Errorf("%s is found at %d, is at %d", c.Name, got, i)
		}
	}
	for i, s := range Structs {
		if got := StructByName(s.Name); got != Index(i) {
			t.Errorf("%s is found at %d, is at %d", s.Name, got, i)
		}
		if s.SType != NoSType && StructBySType(s.SType) != Index(i) {
			t.Errorf("sType %d finds %d, is %s's", s.SType, StructBySType(s.SType), s.Name)
		}
	}
	for i, h := range Handles {
		if got := HandleByName(h.Name); got != Index(i) {
			t.Errorf("%s is found at %d, is at %d", h.Name, got, i)
		}
	}
	for _, x := range Extensions {
		if got, ok := ExtensionByName(x.Name); !ok || got != x {
			t.Errorf("%s is not found", x.Name)
		}
	}
	if _, ok := ExtensionByName("VK_KHR_surface"); ok || CommandByName("vk") != None || StructByName("") != None ||
		HandleByName("VkSurfaceKHR") != None || StructBySType(NoSType) != None || StructBySType(47) != None {
		t.Error("what is not carried is found")
	}
}

// The members of the tables stand in order, within what they are part of, and
// their lengths within it too.
func TestMembersAreSound(t *testing.T) {
	for _, s := range Structs {
		end := uint32(0)
		for _, m := range s.Members {
			if m.Offset < end || m.Offset+m.Size > s.Size || m.Count == 0 || m.Kind == Plain {
				t.Errorf("%s.%s: %+v in %d bytes", s.Name, m.Name, m, s.Size)
			}
			end = m.Offset + m.Size
			checkMember(t, s.Name, m)
			if l := m.Len; m.Kind == Pointer && (l.Kind == Pointed || l.Kind == Strided || l.Then != -1 || l.Kind != One && l.Kind != Fixed && l.Of+uint32(l.Size) > s.Size) {
				t.Errorf("%s.%s: length %+v", s.Name, m.Name, l)
			}
		}
	}
	for _, c := range Commands {
		if len(c.Params) > ArgWords {
			t.Errorf("%s has %d parameters", c.Name, len(c.Params))
		}
		for i, m := range c.Params {
			if m.Offset != uint32(8*i) || m.Count != 1 || m.Size > 8 || m.Kind == Inline {
				t.Errorf("%s.%s: %+v", c.Name, m.Name, m)
			}
			checkMember(t, c.Name, m)
			if l := m.Len; l.Kind != One && l.Kind != Fixed {
				by := c.Params[l.Of]
				counts := by.Kind == Pointer
				if counts != (l.Kind == Pointed || l.Then != -1) {
					t.Errorf("%s.%s: length %+v of %+v", c.Name, m.Name, l, by)
				}
				if l.Kind == Pointed && (by.ElemSize != uint32(l.Size) || by.Elem != Bytes || by.Len.Kind != One) {
					t.Errorf("%s.%s: counted by %+v", c.Name, m.Name, by)
				}
				if l.Then != -1 && uint32(l.Then)+uint32(l.Size) > Structs[by.Type].Size {
					t.Errorf("%s.%s: length %+v", c.Name, m.Name, l)
				}
				if l.Kind == Strided && (c.Params[l.N].Size != 4 || m.Elem != Bytes) {
					t.Errorf("%s.%s: stride %+v", c.Name, m.Name, c.Params[l.N])
				}
			}
		}
	}
}

func checkMember(t *testing.T, owner string, m Member) {
	t.Helper()
	if m.Condition != "" && m.Condition != owner+"."+m.Name {
		t.Errorf("%s.%s: condition %q", owner, m.Name, m.Condition)
	}
	typed := m.Kind == Handle || m.Kind == Inline || m.Kind == Pointer && (m.Elem == HandleElems || m.Elem == StructElems || m.Elem == Pointers)
	if typed == (m.Type == None) {
		t.Errorf("%s.%s: type %d", owner, m.Name, m.Type)
	}
	if m.Kind == Pointer && m.Elem == StructElems && m.ElemSize != Structs[m.Type].Size {
		t.Errorf("%s.%s: %d bytes each, %s has %d", owner, m.Name, m.ElemSize, Structs[m.Type].Name, Structs[m.Type].Size)
	}
	if m.Kind == Inline && (m.Size != m.Count*Structs[m.Type].Size || len(Structs[m.Type].Members) == 0) {
		t.Errorf("%s.%s: %d bytes of %s", owner, m.Name, m.Size, Structs[m.Type].Name)
	}
	if m.Kind == Handle && m.Size != 8*m.Count {
		t.Errorf("%s.%s: %d bytes of %d handles", owner, m.Name, m.Size, m.Count)
	}
}

// Aliases are calls of the same command.
func TestAliasesAreAlike(t *testing.T) {
	for _, c := range Commands {
		if c.Alias == None {
			continue
		}
		to := Commands[c.Alias]
		if to.Alias != None || c.First != to.First || c.Creates != to.Creates || c.Destroys != to.Destroys ||
			c.Returns != to.Returns || c.FloatArgs != to.FloatArgs || !slices.Equal(c.Params, to.Params) {
			t.Errorf("%s is not as %s", c.Name, to.Name)
		}
		if c.Core != 0 || len(c.Extensions) == 0 {
			t.Errorf("%s: core %d, extensions %v", c.Name, c.Core, c.Extensions)
		}
	}
}

func TestCreatesAndDestroys(t *testing.T) {
	for _, c := range []struct {
		name              string
		creates, destroys int8
		first, typ        Index
	}{
		{"vkCreateInstance", 2, -1, None, VkInstance},
		{"vkDestroyInstance", -1, 0, VkInstance, VkInstance},
		{"vkEnumeratePhysicalDevices", 2, -1, VkInstance, VkPhysicalDevice},
		{"vkGetDeviceQueue2", 2, -1, VkDevice, VkQueue},
		{"vkCreateGraphicsPipelines", 5, -1, VkDevice, VkPipeline},
		{"vkAllocateCommandBuffers", 2, -1, VkDevice, VkCommandBuffer},
		{"vkFreeCommandBuffers", -1, 3, VkDevice, VkCommandBuffer},
		{"vkFreeDescriptorSets", -1, 3, VkDevice, VkDescriptorSet},
		{"vkFreeMemory", -1, 1, VkDevice, VkDeviceMemory},
		{"vkDestroySamplerYcbcrConversionKHR", -1, 1, VkDevice, VkSamplerYcbcrConversion},
		{"vkCmdDraw", -1, -1, VkCommandBuffer, None},
		{"vkQueueSubmit", -1, -1, VkQueue, None},
	} {
		i := CommandByName(c.name)
		if i == None {
			t.Fatalf("no %s", c.name)
		}
		got := Commands[i]
		if got.Creates != c.creates || got.Destroys != c.destroys || got.First != c.first {
			t.Errorf("%s: creates %d, destroys %d, first %d", c.name, got.Creates, got.Destroys, got.First)
		}
		if at := max(c.creates, c.destroys); at >= 0 && got.Params[at].Type != c.typ {
			t.Errorf("%s: type %d, want %d", c.name, got.Params[at].Type, c.typ)
		}
	}
	if f := Commands[VkCmdSetDepthBias].FloatArgs; f != 0b1110 {
		t.Errorf("vkCmdSetDepthBias: floats %b", f)
	}
	for i, want := range map[Index]uint8{VkCreateDevice: 10, VkBindBufferMemory2: 11, VkWaitSemaphores: 12, VkQueueSubmit2: 13, VkCmdDrawMeshTasksEXT: 0} {
		if got := Commands[i].Core; got != want {
			t.Errorf("%s: core %d, want %d", Commands[i].Name, got, want)
		}
	}
}
