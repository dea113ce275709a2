// SPDX-License-Identifier: Apache-2.0

package registry

// ArgWords is how many 64-bit words of arguments a command has at most.
const ArgWords = 16

// Args are a command's arguments as its C caller passed them, one per word:
// integers and pointers zero-extended, signed ones sign-extended, a float as
// its 32 bits. Words beyond the command's parameters are not read.
type Args [ArgWords]uint64

// A Command is one Vulkan function.
type Command struct {
	Name    string
	Params  []Member // Offset is 8 times the parameter's index; Size is its natural size
	Returns Returns
	Alias   Index // of the command that this one is another name for, or None

	// First is the handle type of the first parameter, or None: whom the
	// command is dispatched on.
	First Index
	// Creates is the index of the parameter that receives handles, or -1; the
	// parameter's Type says which. These are new ones, save those of
	// vkGetDeviceQueue, vkGetDeviceQueue2 and vkEnumeratePhysicalDevices.
	Creates int8
	// Destroys is the index of the parameter whose handles end, or -1: those of
	// vkDestroy… and vkFree…
	Destroys int8
	// FloatArgs has bit i set if parameter i is a float by value.
	FloatArgs uint16
	// Core is the version that has the command, as 10, 11, 12 or 13; 0 for
	// those of extensions.
	Core uint8
	// Extensions are the names of the extensions that have it.
	Extensions []string
}

// Returns says what a command returns.
type Returns uint8

// What commands return.
const (
	Nothing   Returns = iota
	Result            // VkResult
	Word              // an address, a size, or another integer of up to 64 bits
	Procedure         // PFN_vkVoidFunction
)

// Index is a position in Commands, Structs or Handles.
type Index int16

// None is no Index.
const None Index = -1

// NoSType is the SType of structures without sType. (0 is VkApplicationInfo's.)
const NoSType = ^uint32(0)

// A Struct is a structure or union, as a 64-bit C compiler lays it out.
type Struct struct {
	Name string
	Size uint32
	// SType is the value of sType, or NoSType.
	SType uint32
	// Members are those that are not plain bytes, in order of Offset: a
	// structure without any is copied as it is. (Unions have none, save those
	// of pointers, which are not supported and whose commands are left out.)
	Members []Member
	// Returned: the driver fills it in ("returnedonly").
	Returned bool
}

// A HandleType is a type of handles.
type HandleType struct {
	Name         string
	Dispatchable bool
	// Parent is the handle type that owns it, or None for VkInstance.
	Parent Index
	// Object is its VkObjectType.
	Object uint32
}

// An Extension is one that memspan carries.
type Extension struct {
	Name     string
	Instance bool   // else of a device
	Version  uint32 // its newest revision that the tables know
}

// Kind says what a member is.
type Kind uint8

// The kinds of members. In Structs plain values are not listed at all; among
// Params they are Plain.
const (
	// Plain bytes by value.
	Plain Kind = iota
	// Handle: Count handles of Type by value (an inline array if Count > 1).
	Handle
	// Inline: Count structures of Type by value, which have Members.
	Inline
	// Pointer to elements described by Elem, as many as Len says.
	Pointer
	// Next is a pNext chain.
	Next
	// Local is a pointer or handle that means something in this process only:
	// allocators, callbacks, user data, the window system's. It is never sent
	// and reads as zero on the other side.
	Local
)

// Elem says what a Pointer points to.
type Elem uint8

// The elements of pointers.
const (
	Bytes       Elem = iota // ElemSize plain bytes each; void* has ElemSize 1
	HandleElems             // of Type
	StructElems             // of Type: with or without Members
	String                  // the pointer is itself a NUL-terminated string
	Strings                 // pointers to NUL-terminated strings
	Pointers                // pointers to one structure of Type each
	Object                  // void* whose layout another object says: by hand (descriptor update templates)
)

// A Member is a parameter of a command or a member of a structure.
type Member struct {
	Name   string
	Kind   Kind
	Elem   Elem
	Type   Index  // in Structs or Handles, by Kind and Elem; else None
	Offset uint32 // bytes
	Size   uint32 // bytes by value: of all Count elements of an inline array
	Count  uint32 // of an inline array; else 1
	// ElemSize is the size of what a Pointer points to, per element.
	ElemSize uint32
	Len      Length
	// Out: the command stores through the pointer. What it points to is sent
	// too, as the chains and counts in it are input (save for Bytes and
	// Handles of a Command that do not count anything), and sent back.
	Out bool
	// Optional: it may be null or zero.
	Optional bool
	// Condition names a rule, kept by package codec, that says whether the
	// member means anything; without one it always does. It is
	// "VkStruct.member" for members with noautovalidity that tables cannot
	// describe, and empty for all others.
	Condition string
}

// A Length says how many elements a pointer points to.
type Length struct {
	Kind LengthKind
	// Of is the index in Params of the parameter, or the byte offset of the
	// structure's member, that says it. Size is the size of the number in bytes
	// (1, 2, 4 or 8), wherever it stands.
	Of   uint32
	Size uint8
	// Then is the byte offset of the member that says it in the structure that
	// Of points to, or -1: "pAllocateInfo->descriptorSetCount".
	Then int32
	// N is the fixed count, the divisor, or the stride's parameter.
	N uint32
}

// LengthKind says how a Length is found.
type LengthKind uint8

// The kinds of lengths.
const (
	One     LengthKind = iota // a single element
	Fixed                     // N
	Counted                   // the value of Of (through Then)
	Pointed                   // what Of points to (a uint32_t* or size_t*): the two-call idiom
	Divided                   // the value of Of, divided by N (codeSize / 4)
	RoundUp                   // (the value of Of + N - 1) / N (pSampleMask)
	// Strided is in bytes, of elements a parameter's value apart: with n the
	// value of Of and s that of the uint32_t parameter number N, none if n is 0,
	// else (n - 1) * s + ElemSize.
	Strided
)
