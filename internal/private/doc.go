// SPDX-License-Identifier: Apache-2.0

// Package private takes memory that no other process sees from the system and
// gives it back at once, however much it is. The garbage collector would keep it
// for a while, and let the heap grow by as much again meanwhile.
package private
