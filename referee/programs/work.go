// Goroutines that map by system call, allocate, sort, and recurse until their stacks move, for ever.
package main

import (
	"crypto/sha256"
	"fmt"
	"sort"
	"strings"
	"syscall"
)

var sink int

//go:noinline
func mapped(n int) int {
	b, err := syscall.Mmap(-1, 0, n<<12, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	b[0] = 1
	sum := int(b[0])
	syscall.Munmap(b)
	return sum
}

//go:noinline
func deep(n int) int {
	var space [128]byte
	space[n&127] = 1
	if n == 0 {
		return mapped(3)
	}
	return deep(n-1) + int(space[n&127])
}

func work(number int) {
	defer func() { recover() }()
	for i := 0; ; i++ {
		list := make([]string, 200)
		for j := range list {
			list[j] = fmt.Sprintf("%x", sha256.Sum256([]byte{byte(i), byte(j)}))
		}
		sort.Slice(list, func(a, b int) bool { return list[a] < list[b] })
		sink += len(strings.Join(list, ",")) + deep(i%200)
		big := make([]byte, 1<<20)
		sink += len(big)
		done := make(chan int)
		go func() { done <- deep(500) }()
		sink += <-done
	}
}

func main() {
	for i := 0; i < 3; i++ {
		go work(i)
	}
	work(3)
}
