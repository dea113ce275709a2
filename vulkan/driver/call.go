// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"

	"github.com/memspan/memspan/vulkan/codec"
	"github.com/memspan/memspan/vulkan/registry"
)

// A handler carries out a command and returns its result.
type handler func(d *Driver, cmd registry.Index, a *registry.Args) uint64

// Call carries out a command with the arguments that its C caller passed, and
// returns its result: a VkResult zero-extended, an address or a size, 0 for
// commands that return nothing. cmd is an index in registry.Commands.
func (d *Driver) Call(cmd registry.Index, a *registry.Args) uint64 {
	d.trace.call(cmd)
	return handlers[cmd](d, cmd, a)
}

// failure returns the result of a command that failed with err.
func (d *Driver) failure(cmd registry.Index, err error) uint64 {
	result := int32(outOfHostMemory)
	var refused *refusedError
	switch {
	case errors.Is(err, errLost):
		result = deviceLost // which has been logged
	case errors.As(err, &refused):
		result = refused.result
		d.cfg.Logger.Warn("refused", "command", registry.Commands[cmd].Name, "error", err)
	default:
		if errors.Is(err, codec.ErrUnsupported) {
			result = featureNotPresent
		}
		d.cfg.Logger.Warn("not sent", "command", registry.Commands[cmd].Name, "error", err)
	}
	if registry.Commands[cmd].Returns != registry.Result {
		return 0
	}
	return vkResult(result)
}

// linkOf returns the object that a command is dispatched on, and its link.
func (d *Driver) linkOf(cmd registry.Index, a *registry.Args) (*object, *link, error) {
	first := registry.Commands[cmd].First
	if first == registry.None {
		l, err := d.connect()
		return nil, l, err
	}
	o := d.objects.of(first, a[0])
	if o == nil {
		return nil, nil, &codec.HandleError{Type: registry.Handles[first].Name, ID: a[0]}
	}
	return o, o.link, nil
}

// sendResult sends a command that nobody waits for, and says that it succeeded.
// If it does not, the device is lost.
func (d *Driver) sendResult(cmd registry.Index, a *registry.Args) uint64 {
	_, l, err := d.linkOf(cmd, a)
	if err == nil {
		err = l.sendCall(cmd, a)
	}
	if err != nil {
		return d.failure(cmd, err)
	}
	return success
}

// roundTrip sends a command and waits for its result.
func (d *Driver) roundTrip(cmd registry.Index, a *registry.Args) uint64 {
	_, l, err := d.linkOf(cmd, a)
	var result uint64
	if err == nil {
		result, err = l.call(cmd, a)
	}
	if err != nil {
		return d.failure(cmd, err)
	}
	return result
}
