package main

import (
	"flag"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	coreListers "k8s.io/client-go/listers/core/v1"
	discoveryListers "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const domain = ".svc.cluster.local."

// What the names of a cluster stand for.
type names struct {
	services coreListers.ServiceLister
	slices   discoveryListers.EndpointSliceLister
}

// Answers for the names of Services, and of pods behind headless ones, over UDP. Every other name does not exist.
func dns() error {
	flags := flag.NewFlagSet("dns", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "")
	listen := flags.String("listen", "", "")
	_ = flags.Parse(os.Args[1:])
	client, err := connect(*kubeconfig)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, time.Hour)
	known := names{factory.Core().V1().Services().Lister(), factory.Discovery().V1().EndpointSlices().Lister()}
	factory.Start(wait.NeverStop)
	factory.WaitForCacheSync(wait.NeverStop)
	socket, err := net.ListenPacket("udp", *listen)
	if err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	for {
		length, from, err := socket.ReadFrom(buffer)
		if err != nil {
			return err
		}
		var query dnsmessage.Message
		if query.Unpack(buffer[:length]) != nil || len(query.Questions) != 1 {
			continue
		}
		if answer, err := known.answer(query); err == nil {
			_, _ = socket.WriteTo(answer, from)
		}
	}
}

func (n names) answer(query dnsmessage.Message) ([]byte, error) {
	question := query.Questions[0]
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, Authoritative: true, RecursionDesired: query.RecursionDesired},
		Questions: query.Questions,
	}
	addresses, exists := n.addresses(strings.ToLower(question.Name.String()))
	if !exists {
		answer.RCode = dnsmessage.RCodeNameError
	} else if question.Type == dnsmessage.TypeA {
		for _, address := range addresses {
			answer.Answers = append(answer.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: question.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 5},
				Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(address).To4())},
			})
		}
	}
	return answer.Pack()
}

// The addresses of SERVICE.NAMESPACE or POD.SERVICE.NAMESPACE in the cluster's domain.
func (n names) addresses(name string) (addresses []string, exists bool) {
	within, ours := strings.CutSuffix(name, domain)
	labelsOf := strings.Split(within, ".")
	if !ours || len(labelsOf) < 2 || len(labelsOf) > 3 {
		return nil, false
	}
	pod := labelsOf[0]
	labelsOf = labelsOf[len(labelsOf)-2:]
	ofPod := pod+"."+strings.Join(labelsOf, ".") == within
	service, err := n.services.Services(labelsOf[1]).Get(labelsOf[0])
	if err != nil {
		return nil, false
	}
	if !ofPod && service.Spec.ClusterIP != core.ClusterIPNone {
		return []string{service.Spec.ClusterIP}, true
	}
	slices, _ := n.slices.EndpointSlices(service.Namespace).List(labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: service.Name}))
	for _, slice := range slices {
		for _, endpoint := range slice.Endpoints {
			ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready || service.Spec.PublishNotReadyAddresses
			asked := !ofPod || (endpoint.Hostname != nil && *endpoint.Hostname == pod)
			if ready && asked {
				addresses = append(addresses, endpoint.Addresses...)
			}
		}
	}
	return addresses, !ofPod || len(addresses) > 0
}

func connect(kubeconfig string) (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}
