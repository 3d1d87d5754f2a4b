// SPDX-License-Identifier: Apache-2.0

// Goroutines, a web server and its clients on the loopback, files that are renamed, a child process.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	go http.Serve(listener, nil)
	must(os.MkdirAll("/root/work", 0o755))
	var group sync.WaitGroup
	for n := 0; n < 100; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			answer, err := http.Get(fmt.Sprintf("http://%s/%d", listener.Addr(), n))
			must(err)
			body, err := io.ReadAll(answer.Body)
			must(err)
			must(answer.Body.Close())
			place := filepath.Join("/root/work", fmt.Sprint(n))
			must(os.WriteFile(place+".new", body, 0o644))
			must(os.Rename(place+".new", place))
		}(n)
	}
	group.Wait()
	names, err := os.ReadDir("/root/work")
	must(err)
	said, err := exec.Command("/bin/cat", "/root/work/42").Output()
	must(err)
	if len(names) != 100 || string(said) != "/42" {
		must(fmt.Errorf("%d files, %q", len(names), said))
	}
	fmt.Println("go: goroutines, a web server, files, a process:", len(names))
}
